"""`drengine store`: stores that targets share."""
