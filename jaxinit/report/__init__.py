"""What `jaxinit report` shows: tables, pictures, findings, and the model it shows them on."""
