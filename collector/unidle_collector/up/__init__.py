"""`unidle up`: every role on this machine as a child process, and a demo that judges itself."""
