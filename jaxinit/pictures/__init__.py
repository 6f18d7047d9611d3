"""Pictures of models: a reading as a graph, laid out and drawn."""
