"""A catalogue made anew: manifests, files that no row names, what segments tell by themselves."""
