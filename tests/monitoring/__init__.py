"""Tests of what watches drengine: rules, scrape configuration, dashboards, notifications."""
