#!/bin/busybox sh
# The guest's first and only process of its own: mounts what a system has, runs the tests, powers off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
# An emulated machine is slow: what tests wait for may take this many times as long.
export BLOCKER_TEST_PATIENCE=5
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run/netns /etc/modprobe.d
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t bpf bpf /sys/fs/bpf
# udev would make this one, and opening it loads the module.
mkdir /dev/net
mknod /dev/net/tun c 10 200
ip link set lo up

# Runs test $1, for at most $2 seconds. What a failed one says may be long (verifier logs) and the
# console is slow, so that only its end is shown.
run() {
    read -r start _ < /proc/uptime
    timeout "$2" /tests --include-ignored --exact "$1" > /tmp/out 2>&1
    read -r end _ < /proc/uptime
    took=$(awk "BEGIN { print $end - $start }")
    if grep -q '^test result: ok. 1 passed' /tmp/out; then
        echo "== passed $1 $took"
    else
        echo "== failed $1 $took"
        tail -c 12000 /tmp/out
        echo
        echo "== said"
    fi
}

# Takes a module away, so that it cannot be loaded again.
hide() {
    echo "install $1 /bin/false" > /etc/modprobe.d/hidden.conf
    grep -q "^$1 " /proc/modules && rmmod "$1"
}
unhide() {
    rm /etc/modprobe.d/hidden.conf
}

# The firmware left its own marks on this line.
echo
echo "== kernel $(uname -r)"
. /plan.sh
echo "== done"
poweroff -f
