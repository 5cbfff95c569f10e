"""The daemon on every GPU node: samples, keeps what is not yet acknowledged, and ships it."""
