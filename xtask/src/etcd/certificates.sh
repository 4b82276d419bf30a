#!/bin/sh
# An authority, a certificate for the members of etcd at an address, and one for each user: what
# docs/fleet.md shows. Usage: certificates.sh ADDRESS USER...
set -eu
address=$1
shift

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -subj "/CN=blocker fleet" -days 3650 -out ca.pem

# sign NAME SUBJECT EXTENSIONS
sign() {
    key "$1.key"
    printf '%s\n' "$3" >"$1.ext"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.pem"
}

sign etcd /O=etcd "subjectAltName=IP:$address
extendedKeyUsage=serverAuth,clientAuth"
for user; do
    # etcd takes the user from the certificate's common name.
    sign "$user" "/CN=$user" "extendedKeyUsage=clientAuth"
done
