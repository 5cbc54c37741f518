"""What a site decides about its sources, kept beside the store: settings for each of them, and which are retired."""
