"""A store's files as immutable objects of an S3 store."""
