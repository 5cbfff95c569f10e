"""The door for rows: who may write which node's rows, and the push endpoint itself."""
