"""What keeps a store small and sound: retention, compaction, scrub."""
