"""Whether this source is in charge of its volumes."""
