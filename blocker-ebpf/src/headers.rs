//! Headers as they are on the wire, and the numbers in them.
//!
//! Not the types of the crate `network-types`: those are made of byte arrays, and of a field that
//! is aligned to 1 BPF loads each byte by itself. Packet data begins at an even address and every
//! header's length is even, so all fields here are aligned to 2.

#![expect(missing_docs, reason = "fields and numbers are named as in the RFCs")]

/// EtherTypes.
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    /// The outer tag of QinQ (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// IP protocol numbers, and IPv6 extension headers, which are numbered with them (IANA's "Protocol
/// Numbers").
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// Flags of a TCP segment (RFC 9293 3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Types and codes of ICMP (RFC 792, RFC 1812 5.2.7.1).
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const ECHO: u8 = 8;
    /// The first and the last of the other requests and replies (timestamp, information, address mask).
    pub const TIMESTAMP: u8 = 13;
    pub const ADDRESS_MASK_REPLY: u8 = 18;

    /// Codes of [`UNREACHABLE`].
    pub const PORT: u8 = 3;
    pub const PROHIBITED: u8 = 13;
}

/// Types and codes of ICMPv6 (RFC 4443, RFC 4861).
pub mod icmpv6 {
    pub const UNREACHABLE: u8 = 1;
    pub const ECHO: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

    /// Codes of [`UNREACHABLE`].
    pub const PROHIBITED: u8 = 1;
    pub const PORT: u8 = 4;
}

plain! {
    /// A 16-bit field in network order.
    pub struct Be16 { pub raw: u16 }

    /// A 32-bit field in network order, in halves, so that it is aligned to 2.
    pub struct Be32 { pub raw: [u16; 2] }

    pub struct Ethernet {
        pub destination: [u16; 3],
        pub source: [u16; 3],
        pub ethertype: Be16,
    }

    /// What follows the EtherType of a VLAN tag, with the next EtherType.
    pub struct Vlan {
        pub control: Be16,
        pub ethertype: Be16,
    }

    /// RFC 791 3.1, without options.
    pub struct Ipv4 {
        pub version_length: u8,
        pub tos: u8,
        pub length: Be16,
        pub id: Be16,
        /// Flags in the top 3 bits, then the offset.
        pub fragment: Be16,
        pub ttl: u8,
        pub protocol: u8,
        pub checksum: u16,
        pub source: Be32,
        pub destination: Be32,
    }

    /// RFC 8200 section 3.
    pub struct Ipv6 {
        /// The version in the top 4 bits of the first byte, traffic class, flow label.
        pub version: [u8; 4],
        /// Of what is behind this header.
        pub length: Be16,
        pub next: u8,
        pub hop_limit: u8,
        pub source: [u16; 8],
        pub destination: [u16; 8],
    }

    /// What an IPv6 extension header begins with (RFC 8200 section 4).
    pub struct Extension {
        pub next: u8,
        pub length: u8,
    }

    /// An IPv6 fragment header without its identification.
    pub struct Fragment {
        pub next: u8,
        pub reserved: u8,
        /// The offset in the top 13 bits; the lowest is set if more fragments follow.
        pub offset: Be16,
    }

    /// RFC 9293 3.1, without options.
    pub struct Tcp {
        pub source: Be16,
        pub destination: Be16,
        pub seq: Be32,
        pub ack: Be32,
        /// The header's length in words of 4 bytes, in the top 4 bits.
        pub offset: u8,
        pub flags: u8,
        pub window: Be16,
        pub checksum: u16,
        pub urgent: Be16,
    }

    /// RFC 768.
    pub struct Udp {
        pub source: Be16,
        pub destination: Be16,
        pub length: Be16,
        pub checksum: u16,
    }

    /// RFC 792 and RFC 4443, as errors have it.
    pub struct Icmp {
        pub kind: u8,
        pub code: u8,
        pub checksum: u16,
        pub unused: Be32,
    }
}

impl Ipv4 {
    /// The version, which is 4.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_length >> 4
    }

    /// The header's length with its options, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn header_length(&self) -> u32 {
        (self.version_length & 15) as u32 * 4
    }
}

impl Ipv6 {
    /// The version, which is 6.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version[0] >> 4
    }
}

impl Tcp {
    /// The header's length with its options, in bytes.
    #[inline(always)]
    #[must_use]
    pub const fn header_length(&self) -> u32 {
        (self.offset >> 4) as u32 * 4
    }
}

impl Be16 {
    /// A number in network order.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self {
            raw: number.to_be(),
        }
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u16 {
        u16::from_be(self.raw)
    }
}

impl Be32 {
    /// A number in network order.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self {
            raw: [((number >> 16) as u16).to_be(), (number as u16).to_be()],
        }
    }

    /// The number.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        let [high, low] = self.raw;
        (u16::from_be(high) as u32) << 16 | u16::from_be(low) as u32
    }
}

/// Whether an IP protocol number is an IPv6 extension header's (IANA's "IPv6 Extension Header
/// Types").
#[inline(always)]
#[must_use]
pub const fn is_extension(number: u8) -> bool {
    use protocol::*;
    matches!(
        number,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HIP
            | SHIM6
    )
}
