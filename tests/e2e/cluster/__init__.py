"""A real single-node Kubernetes on this machine: `make cluster-up`, `make cluster-down`. README.md beside this file."""
