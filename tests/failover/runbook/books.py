"""Runbooks to test with."""

SMALL = """\
version: 1
name: shop
sources:
  db:
    fence: {command: [/sbin/power-off, db]}
    launch: {driver: command, settings: {run: [sleep, "60"]}}
waves:
  - name: first
    sources: [db]
    then:
      - tcp: {host: "${db.address}", port: 5432}
"""

WHOLE = """\
# everything that a runbook can hold
version: 1
name: web-shop
description: |
  The shop and its database.
  Ask Ann before you touch it.
objectives: {rpo: 5s, rto: 2m}
schedule: "30 3 * * sun"
sources:
  db:
    fence: &fence {command: [/sbin/power-off, "12"], timeout: 20s, retries: 2}
    stop: [systemctl, stop, postgresql]
    start: [systemctl, start, postgresql]
    point: before:2026-11-23T10:00:00Z
    launch:
      driver: qemu
      settings: {memory_mib: 2048, details: {address: 10.0.0.5}}
      drill: {drill_network: none}
      timeout: 10m
      retries: 1
      hydrate: true
  web:
    fence: *fence
    launch:
      {driver: standby, host: edge-2, settings: {}, interfaces: {eth0: {addresses: [10.9.0.7/24], mac: keep}}}
addresses:
  rules:
    - {from: 10.1.0.0/16, to: 10.9.0.0/16, gateway: 10.9.0.1, name_servers: [10.9.0.53], search: [example.org]}
waves:
  - name: data
    sources: [db]
    before:
      - name: May we?
        approval: {prompt: "Start the failover of the shop?", by: [ann, ben]}
        modes: [failover]
      - notify: {url: "https://chat.example/hook"}
    then:
      - tcp: {host: "${db.address}", port: 5432}
        timeout: 1m
      - sql: {dsn: "postgresql://check@${db.address}/shop", query: SELECT count(*) > 0 FROM orders, expect: "True"}
        retries: 3
        every: 500ms
      - command: [/bin/sh, -c, "a=1; echo $a | cat"]
        critical: false
        on_failure: continue
  - name: front
    sources: [web]
    after: [data]
    then:
      - wait: 2s
      - http: {url: "http://${web.address}:8080/health", status: 204, contains: ok, headers: {Accept: text/plain}}
      - dns: {server: "10.0.0.53", zone: example.org, name: shop, values: ["${web.address}"], ttl: 30, key_file: /etc/k}
        modes: [failover, migration, failback]
      - notify: {command: [/usr/bin/logger, done]}
  - name: last
    after: []
"""
