"""What runs in each node; none of it imports Launchpad where it need not."""
