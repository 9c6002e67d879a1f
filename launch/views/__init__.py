"""What a person sees: of a run, of its replay, of a policy, of several runs."""
