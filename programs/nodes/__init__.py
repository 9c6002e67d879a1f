"""What runs in each node; only `serving` imports Launchpad."""
