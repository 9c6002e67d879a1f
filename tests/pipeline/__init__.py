"""What parts do together: Reverb, the learner on real data, the program."""
