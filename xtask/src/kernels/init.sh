#!/bin/busybox sh
# The guest's first and only process of its own: mounts what a system has, runs the tests, powers off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
# An emulated machine is slow: what tests wait for may take this many times as long.
export BLOCKER_TEST_PATIENCE=5
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
# The firmware left its own marks on this line.
echo
echo "== kernel $(uname -r)"
. /jobs.sh
echo "== done"
poweroff -f
