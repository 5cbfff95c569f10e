"""All shards of a site as one collector: who reads does not know that there are shards.

    question -> asking (each shard: here, or over HTTP where another holds it) -> merging -> answer
    incidents of the shards -> stories -> incidents of the site, in the schema that all share

Any collector of shards answers so; what it could not learn is named in the answer, never left out in silence.
"""
