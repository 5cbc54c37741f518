"""Control messages: small, over MQTT 5, never block data. Topics, envelopes, client, embedded broker."""
