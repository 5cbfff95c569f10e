"""The Streamlit script of the dashboard: pages and the way from an alert's link to its incident.

Started by `unidle dashboard`, which hands over the settings in the environment.
"""

from __future__ import annotations

import streamlit as st

from unidle_dashboard import frame
from unidle_dashboard.frame import ASSETS
from unidle_dashboard.screens import fleet, health, incidents, recommendations, sites, today


def main() -> None:
    """Run the page that the address names."""
    st.set_page_config(page_title="unidle", page_icon=str(ASSETS / "icon.svg"), layout="wide")
    st.html(ASSETS / "style.css")
    st.logo(str(ASSETS / "logo.svg"), size="large")
    if frame.federated():
        _federation()
        return
    incident_page = st.Page(incidents.show, title="Incidents", url_path="incidents")
    page = st.navigation(
        [
            st.Page(today.show, title="Today", url_path="today", default=True),
            st.Page(fleet.show, title="Fleet", url_path="fleet"),
            incident_page,
            st.Page(recommendations.show, title="Recommendations", url_path="recommendations"),
            st.Page(health.show, title="Data health", url_path="health"),
        ],
        position="top",
    )
    if page.title != incident_page.title:
        _follow_link(incident_page)
    page.run()


def _federation() -> None:
    """The pages of several sites together; rows and incidents are on each site's own dashboard."""
    first = st.Page(sites.show, title="Sites", url_path="sites", default=True)
    st.navigation([first, st.Page(today.show, title="Today", url_path="today")], position="top").run()


def _follow_link(incident_page: st.Page) -> None:
    """Open the incident of an alert's link `/?incident=ID`, once: whoever then turns the page stays there."""
    wanted = st.query_params.get("incident")
    if wanted is None:
        return
    if st.session_state.get("followed") != wanted:
        st.session_state["followed"] = wanted
        st.switch_page(incident_page, query_params={"incident": wanted})
    del st.query_params["incident"]


if __name__ == "__main__":
    main()
