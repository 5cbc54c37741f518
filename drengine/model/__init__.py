"""Values shared by every part: identities, extents, recovery points, states, errors. No I/O here."""
