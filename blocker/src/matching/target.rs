//! Targets: addresses and prefixes of remotes, and their text.
//!
//! A rule may have a million targets. So neither printing a target nor parsing a valid one
//! allocates, and IPv4 in plain form has a fast parser: a million random addresses take it 28 ms,
//! and the standard library 44 ms (optimised, least of 30 runs). The parsers of the standard library
//! and of `ipnet` decide whether any other text is valid.

use std::fmt::{self, Write as _};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::RuleError;
use super::text::schemas;

/// An address or prefix that names remotes, or local addresses. Written without `/32` or `/128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

impl Target {
    /// The prefix.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Parses an IPv4 target in plain form. For any other text the result is `None`, and
    /// [`Target::from_str`] tells whether it is a target.
    pub(crate) fn plain(text: &[u8]) -> Option<Self> {
        plain_v4(text).map(|net| Self(IpNet::V4(net)))
    }

    /// Writes the target's text and a newline.
    ///
    /// # Errors
    /// The writer's.
    pub(crate) fn write_line(self, writer: &mut impl io::Write) -> io::Result<()> {
        let mut text = Text::of(self);
        // Cannot fail: `Text::LONGEST` has room for the newline after any target.
        let _ = text.push(b'\n');
        writer.write_all(&text.bytes[..text.length])
    }

    /// Whether it names exactly one address.
    #[must_use]
    pub fn is_host(self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }
}

impl From<IpNet> for Target {
    /// Clears the bits after the prefix length.
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl From<IpAddr> for Target {
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if let Some(target) = Self::plain(text.as_bytes()) {
            return Ok(target);
        }
        let net = if text.contains('/') {
            text.parse().ok()
        } else {
            text.parse::<IpAddr>().ok().map(IpNet::from)
        };
        let net = net.ok_or_else(|| RuleError::Target(text.to_owned()))?;
        if let IpNet::V6(v6) = net
            && let Some(v4) = v6.addr().to_ipv4_mapped()
            && v6.prefix_len() >= 96
        {
            let v4 = match v6.prefix_len() {
                128 => v4.to_string(),
                length => format!("{v4}/{}", length - 96),
            };
            return Err(RuleError::Mapped {
                text: text.to_owned(),
                v4,
            });
        }
        if net.addr() != net.network() {
            return Err(RuleError::HostBits {
                text: text.to_owned(),
                network: net.trunc(),
                address: net.addr(),
            });
        }
        Ok(Self(net))
    }
}

/// The longest text of an IPv4 target: 255.255.255.255/32.
const LONGEST_V4: usize = 18;

/// Parses an IPv4 target in plain form: no number has a leading zero, and no bit is set after the
/// prefix length. `None` says only that the text has another form.
fn plain_v4(text: &[u8]) -> Option<Ipv4Net> {
    if text.len() > LONGEST_V4 {
        return None;
    }
    // `number` reads four bytes, also at the end of the text: the zeros there are not digits.
    let mut bytes = [0; LONGEST_V4 + size_of::<u32>()];
    bytes[..text.len()].copy_from_slice(text);
    let mut address = 0;
    let mut place = 0;
    for octet in 0..4 {
        if octet > 0 {
            if bytes[place] != b'.' {
                return None;
            }
            place += 1;
        }
        let (value, digits) = number(&bytes[place..])?;
        if value > 255 {
            return None;
        }
        address = address << 8 | value;
        place += digits;
    }
    let mut length = 32;
    if place < text.len() {
        if bytes[place] != b'/' {
            return None;
        }
        let digits;
        (length, digits) = number(&bytes[place + 1..])?;
        place += 1 + digits;
    }
    let behind = u32::MAX.checked_shr(length).unwrap_or(0);
    if place != text.len() || address & behind != 0 {
        return None;
    }
    Ipv4Net::new(Ipv4Addr::from(address), u8::try_from(length).ok()?).ok()
}

/// Parses a decimal number of one to three digits without leading zeros. Returns the number and how
/// many digits it has.
///
/// The digit count is hard to predict, so the only branch on it is the one that rejects the text.
fn number(text: &[u8]) -> Option<(u32, usize)> {
    // The first character is the lowest byte. XOR makes a digit its value, other bytes 10 or more.
    // The addition sets the top bit of those. It carries only into bytes after the first of them.
    let word = u32::from_le_bytes(*text.first_chunk()?) ^ 0x3030_3030;
    let others = (word.wrapping_add(0x7676_7676) | word) & 0x8080_8080;
    let digits = others.trailing_zeros() / 8;
    let needless = (digits > 1) & (word & 0xff == 0);
    if !(1..=3).contains(&digits) || needless {
        return None;
    }
    let [_, hundreds, tens, ones] = (word << (8 * (4 - digits))).to_le_bytes();
    let value = u32::from(hundreds) * 100 + u32::from(tens) * 10 + u32::from(ones);
    Some((value, digits as usize))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Text::of(*self).as_str())
    }
}

/// The digits of every octet, and how many they are: a lookup is cheaper than divisions.
const DECIMAL: [([u8; 3], usize); 256] = {
    let mut table = [([0; 3], 0); 256];
    let mut number = 0;
    while number < 256 {
        let [hundreds, tens, ones] = [number / 100, number / 10 % 10, number % 10];
        let [h, t, o] = [b'0' + hundreds as u8, b'0' + tens as u8, b'0' + ones as u8];
        table[number] = match number {
            0..10 => ([o, 0, 0], 1),
            10..100 => ([t, o, 0], 2),
            _ => ([h, t, o], 3),
        };
        number += 1;
    }
    table
};

/// A target's text, on the stack.
struct Text {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl Text {
    /// An IPv6 address has at most 39 characters (RFC 5952; the mixed notation of mapped addresses
    /// is shorter), a prefix length at most four.
    const LONGEST: usize = 48;

    fn of(target: Target) -> Self {
        let mut text = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        // Cannot fail: `LONGEST` has room for any target.
        let _ = text.write(target);
        text
    }

    fn write(&mut self, target: Target) -> fmt::Result {
        match target.0.addr() {
            IpAddr::V4(address) => {
                for (place, octet) in address.octets().into_iter().enumerate() {
                    if place > 0 {
                        self.push(b'.')?;
                    }
                    self.decimal(octet)?;
                }
            }
            IpAddr::V6(address) => write!(self, "{address}")?,
        }
        if !target.is_host() {
            self.push(b'/')?;
            self.decimal(target.0.prefix_len())?;
        }
        Ok(())
    }

    fn decimal(&mut self, number: u8) -> fmt::Result {
        let (digits, count) = &DECIMAL[usize::from(number)];
        let end = self.length + digits.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(digits); // bytes after the last digit are overwritten or not read
        self.length += count;
        Ok(())
    }

    fn push(&mut self, byte: u8) -> fmt::Result {
        *self.bytes.get_mut(self.length).ok_or(fmt::Error)? = byte;
        self.length += 1;
        Ok(())
    }

    fn as_str(&self) -> &str {
        // Digits, dots, colons and a slash are ASCII.
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| self.push(byte))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Text::of(*self).as_str())
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Target, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

schemas! {
    Target: {
        "type": "string",
        "description": "An address or a prefix, IPv4 or IPv6.",
        "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
    };
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn target(address: IpAddr, length: u8) -> Target {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length % (most + 1);
        Target::from(IpNet::new(address, length).unwrap())
    }

    /// Addresses whose texts have every form: runs of zeros of every length and position.
    fn sparse() -> impl Strategy<Value = Ipv6Addr> {
        let group = prop_oneof![Just(0u16), Just(0), any::<u16>(), 0u16..0x20];
        proptest::array::uniform8(group).prop_map(Ipv6Addr::from)
    }

    proptest! {
        #[test]
        fn text_is_the_standard_librarys(v4: u32, v6 in sparse(), length: u8) {
            for address in [Ipv4Addr::from(v4).into(), IpAddr::from(v6)] {
                let target = target(address, length);
                let text = match target.is_host() {
                    true => target.net().addr().to_string(),
                    false => target.net().to_string(),
                };
                prop_assert_eq!(target.to_string(), text.as_str());
                prop_assert_eq!(serde_json::to_string(&target).unwrap(), format!("{text:?}"));
            }
        }

        /// The fast parser accepts only what the standard parsers accept, with the same result.
        #[test]
        fn plain_ipv4_is_what_it_is_to_the_standard_library(text in "[0-9./]{0,20}|([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,3})?") {
            let slow = text
                .parse::<Ipv4Net>()
                .or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
            match plain_v4(text.as_bytes()) {
                Some(net) => prop_assert_eq!(Ok(net), slow),
                None => {
                    let zeros = text.split(['.', '/']).any(|part| part.len() > 1 && part.starts_with('0'));
                    prop_assert!(zeros || slow.map_or(true, |net| net.addr() != net.network()));
                }
            }
        }
    }

    #[test]
    fn every_number_is_read_and_no_other() {
        for value in 0..=999u32 {
            for behind in ["", ".", "/", "a", "\u{3a}", "\u{2f}", "\u{b9}"] {
                let text = format!("{value}{behind}");
                let mut bytes = text.clone().into_bytes();
                bytes.resize(8, 0);
                let digits = value.to_string().len();
                assert_eq!(number(&bytes), Some((value, digits)), "{text:?}");
            }
        }
        for text in [
            "", "a1", "/1", ":1", "01", "00", "001", "1000", "0000", "\u{b9}",
        ] {
            let mut bytes = text.to_owned().into_bytes();
            bytes.resize(8, 0);
            assert_eq!(number(&bytes), None, "{text:?}");
        }
    }

    #[test]
    fn the_longest_text_has_room() {
        let longest = "1111:2222:3333:4444:5555:6666:7777:8800/121";
        assert_eq!(longest.parse::<Target>().unwrap().to_string(), longest);
        let mixed = "::ffff:0.0.0.0/95";
        assert!(mixed.parse::<Target>().is_err(), "bits behind the length");
    }
}
