"""What one function or class does: pure, or in one process, and fast."""
