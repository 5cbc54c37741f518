"""Reading a runbook: its shape, its sense, and the schema by which editors know both."""
