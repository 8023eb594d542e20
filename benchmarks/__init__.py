"""Side-by-side measurements; every number in a README or doc names one of these, a machine and a commit."""
