"""What several detectors rest on: signs of a cause, comparisons of GPUs, faults that last, catalogues."""
