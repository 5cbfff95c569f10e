"""Sites that have a Prometheus already: as a source of history, as a sender of samples, and without one.

`history` reads a server's past by PromQL, `receiver` takes remote_write, `scraper` asks dcgm-exporters
itself. All three make of series what the agent's parser makes of a page.
"""
