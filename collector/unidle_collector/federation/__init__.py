"""Many sites, one fabric: collectors of several sites shown as one fleet, each keeping its rows.

What crosses is decided and written down at the site that sends:

    site's collector:  policy (a file) -> sending -> groups (k persons) -> SiteReport -> crossings (audit)
    federation:        SiteReport -> following (one thread per site) -> merging -> API, dashboard

A federation holds nothing but the last report of each site. docs/federation.md shows what crosses.
"""
