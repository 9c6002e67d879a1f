"""Tests; a package, so that processes can import its environments."""
