#!/usr/bin/env bash
# The control groups of the pods: cgroups.sh make | remove. (Version 2 is written for, and has not been run.)
set -euo pipefail
source "$(dirname "$0")/places.sh"
root=/sys/fs/cgroup
case $1 in
make)
    if [ -e $root/cgroup.controllers ]; then
        mkdir -p $root/$CGROUP
        for controller in cpuset cpu io memory pids; do echo "+$controller" > $root/cgroup.subtree_control; done
    else
        for hierarchy in $root/*/; do mkdir -p "$hierarchy$CGROUP"; done
        # A new group of cpuset has no CPU until it is given some.
        for file in cpuset.cpus cpuset.mems; do cat $root/cpuset/$file > $root/cpuset/$CGROUP/$file; done
    fi
    ;;
remove)
    # One can be removed when its last process is gone.
    for _ in {1..50}; do
        find $root/$CGROUP $root/*/$CGROUP -depth -type d -exec rmdir {} + 2> /dev/null || true
        compgen -G "$root/$CGROUP" > /dev/null || compgen -G "$root/*/$CGROUP" > /dev/null || exit 0
        sleep 0.1
    done
    echo "control groups that are still in use: $(compgen -G "$root/*/$CGROUP" | tr '\n' ' ')" >&2
    exit 1
    ;;
esac
