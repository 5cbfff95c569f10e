"""What runs inside a job rather than beside it: see docs/in-job.md."""
