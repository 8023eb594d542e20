"""What `kdcache report` writes: one HTML page about a store, or about finished runs."""
