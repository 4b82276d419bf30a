#!/bin/sh
# Users and roles in etcd: what docs/fleet.md shows. Users come by certificate, so they have no
# password. Usage: roles.sh HOST... ; HOST:readonly is one that may not report itself.
set -eu
prefix=/blocker

etcdctl user add root --no-password
etcdctl user grant-role root root

etcdctl role add blocker-operator
etcdctl role grant-permission blocker-operator --prefix=true readwrite $prefix/rules/
etcdctl role grant-permission blocker-operator --prefix=true readwrite $prefix/asks/
etcdctl role grant-permission blocker-operator --prefix=true read $prefix/hosts/
etcdctl user add operator --no-password
etcdctl user grant-role operator blocker-operator

etcdctl role add blocker-host
etcdctl role grant-permission blocker-host --prefix=true read $prefix/rules/
etcdctl role grant-permission blocker-host --prefix=true read $prefix/asks/
for host; do
    name=${host%:readonly}
    etcdctl user add "$name" --no-password
    etcdctl user grant-role "$name" blocker-host
    if [ "$name" = "$host" ]; then
        etcdctl role add "blocker-host-$name"
        etcdctl role grant-permission "blocker-host-$name" --prefix=true readwrite "$prefix/hosts/$name/"
        etcdctl user grant-role "$name" "blocker-host-$name"
    fi
done

etcdctl auth enable
