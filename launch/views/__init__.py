"""What people see of a run, of its replay, of a policy and of several runs."""
