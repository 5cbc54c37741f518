"""A real S3 server to test against, and a proxy before it that fails as told."""
