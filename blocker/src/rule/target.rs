//! Targets: addresses and prefixes of remotes, and their text.
//!
//! Rules may have a million of them, so neither direction of the text allocates, and the usual forms
//! have parsers of their own. What these do not take goes to the standard library's, which settles
//! what is valid, and to the error that says why it isn't.

use std::fmt::{self, Write as _};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::RuleError;

/// An address or prefix that names remotes, or local addresses. Written without `/32` or `/128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

impl Target {
    /// The prefix.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// A target in its usual form. `None` says only that it is not that: what it is, and why it may
    /// be none, [`Target::from_str`] says.
    pub(crate) fn plain(text: &[u8]) -> Option<Self> {
        let v4 = plain_v4(text).map(IpNet::V4);
        v4.or_else(|| plain_v6(text).map(IpNet::V6)).map(Self)
    }

    /// Writes its text and an end of line.
    ///
    /// # Errors
    /// The writer's.
    pub(crate) fn write_line(self, writer: &mut impl io::Write) -> io::Result<()> {
        let mut text = Text::of(self);
        // There is room: `Text::LONGEST` is more than any text has.
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
    /// Bits behind the prefix length are cleared.
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
        let net = match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => text
                .parse::<IpAddr>()
                .map(IpNet::from)
                .map_err(|_| RuleError::Target(text.to_owned()))?,
        };
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

/// An IPv4 target in its usual form: no number begins with a zero that it could do without, no
/// bit is set behind the length. `None` says only that it is not that.
fn plain_v4(text: &[u8]) -> Option<Ipv4Net> {
    let mut rest = text;
    let mut address = 0u32;
    for place in 0..4 {
        if place > 0 {
            rest = rest.strip_prefix(b".")?;
        }
        let octet;
        (octet, rest) = number(rest, 255)?;
        address = address << 8 | octet;
    }
    let length = length(rest, 32)?;
    let behind = u32::MAX.checked_shr(length.into()).unwrap_or(0);
    if address & behind != 0 {
        return None;
    }
    Ipv4Net::new(Ipv4Addr::from(address), length).ok()
}

/// An IPv6 target in its usual form: groups, "::" in place of some of them, no IPv4 in it or mapped
/// into it, no bit set behind the length. `None` says only that it is not that.
fn plain_v6(text: &[u8]) -> Option<Ipv6Net> {
    const GROUPS: usize = 8;
    let mut groups = [0u16; GROUPS];
    // How many there are, and how many of them stand before "::".
    let (mut count, mut before) = (0, None);
    let mut rest = text;
    while !rest.is_empty() && rest[0] != b'/' {
        if let Some(behind) = rest.strip_prefix(b"::") {
            if before.replace(count).is_some() {
                return None;
            }
            rest = behind;
            if rest.is_empty() || rest[0] == b'/' {
                break;
            }
        } else if count > 0 {
            rest = rest.strip_prefix(b":")?;
        }
        let group;
        (group, rest) = hexadecimal(rest)?;
        *groups.get_mut(count)? = group;
        count += 1;
    }
    match before {
        // "::" is for one group at least.
        Some(before) if count < GROUPS => {
            groups.copy_within(before..count, GROUPS - (count - before));
            groups[before..GROUPS - (count - before)].fill(0);
        }
        None if count == GROUPS => {}
        _ => return None,
    }
    let length = length(rest, 128)?;
    let address = Ipv6Addr::from(groups);
    let behind = u128::MAX.checked_shr(length.into()).unwrap_or(0);
    if address.to_bits() & behind != 0 || address.to_ipv4_mapped().is_some() {
        return None;
    }
    Ipv6Net::new(address, length).ok()
}

/// A hexadecimal number of up to four digits, and what follows it.
fn hexadecimal(text: &[u8]) -> Option<(u16, &[u8])> {
    let mut value = 0;
    let mut count = 0;
    for byte in text.iter().take(4) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => break,
        };
        value = value << 4 | u16::from(digit);
        count += 1;
    }
    (count > 0).then(|| (value, &text[count..]))
}

/// A prefix length, or the `longest` where there is none.
fn length(text: &[u8], longest: u8) -> Option<u8> {
    match text.split_first() {
        None => Some(longest),
        Some((b'/', length)) => match number(length, longest.into())? {
            (length, []) => u8::try_from(length).ok(),
            _ => None,
        },
        Some(_) => None,
    }
}

/// A decimal number of up to three digits, at most `most`, and what follows it.
fn number(text: &[u8], most: u32) -> Option<(u32, &[u8])> {
    let digits = text.iter().take(3).take_while(|byte| byte.is_ascii_digit());
    let (count, value) = digits.fold((0, 0), |(count, value), byte| {
        (count + 1, value * 10 + u32::from(byte - b'0'))
    });
    let zeros = count > 1 && text[0] == b'0';
    (count > 0 && !zeros && value <= most).then(|| (value, &text[count..]))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Text::of(*self).as_str())
    }
}

/// The digits of every octet, and how many they are: cheaper to look up than to divide for.
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
    /// An IPv6 address is at most 39 characters long (RFC 5952; its mixed form is for mapped ones
    /// and shorter), a length four more.
    const LONGEST: usize = 48;

    fn of(target: Target) -> Self {
        let mut text = Self {
            bytes: [0; Self::LONGEST],
            length: 0,
        };
        // It fails only where there is no room, and there is.
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
            IpAddr::V6(address) => self.v6(address)?,
        }
        if !target.is_host() {
            self.push(b'/')?;
            self.decimal(target.0.prefix_len())?;
        }
        Ok(())
    }

    /// As RFC 5952 has it: in lower case, without leading zeros, "::" in place of the first of the
    /// longest runs of zeros that are two groups at least.
    fn v6(&mut self, address: Ipv6Addr) -> fmt::Result {
        if address.to_ipv4_mapped().is_some() {
            return write!(self, "{address}");
        }
        let groups = address.segments();
        let (mut run, mut longest) = (0..0, 0..0);
        for (place, group) in groups.into_iter().enumerate() {
            run = if group == 0 {
                run.start..place + 1
            } else {
                place + 1..place + 1
            };
            if run.len() > longest.len() {
                longest = run.clone();
            }
        }
        if longest.len() < 2 {
            longest = groups.len()..groups.len();
        }
        for (place, group) in groups.into_iter().enumerate() {
            if longest.contains(&place) {
                if place == longest.start {
                    self.push(b':')?;
                }
                continue;
            }
            if place > 0 {
                self.push(b':')?;
            }
            self.hexadecimal(group)?;
        }
        if longest.end == groups.len() && !longest.is_empty() {
            self.push(b':')?;
        }
        Ok(())
    }

    fn hexadecimal(&mut self, group: u16) -> fmt::Result {
        let digits = (u16::BITS - group.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self.push(b"0123456789abcdef"[usize::from(group >> (4 * digit) & 0xf)])?;
        }
        Ok(())
    }

    fn decimal(&mut self, number: u8) -> fmt::Result {
        let (digits, count) = &DECIMAL[usize::from(number)];
        let end = self.length + digits.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(digits); // what is behind the last digit is overwritten, or not read
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(address: IpAddr, length: u8) -> Target {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length % (most + 1);
        Target::from(IpNet::new(address, length).unwrap())
    }

    /// Whose text has every form: runs of zeros, of every length and in every place.
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

        /// What the fast parser takes is what the standard library reads there.
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

    proptest! {
        #[test]
        fn plain_ipv6_is_what_it_is_to_the_standard_library(
            text in "[0-9a-fA-F:./]{0,24}|(([0-9a-f]{0,5}|0):){1,8}[0-9A-F]{0,4}(/[0-9]{1,3})?"
        ) {
            let slow = text
                .parse::<Ipv6Net>()
                .or_else(|_| text.parse::<Ipv6Addr>().map(Ipv6Net::from));
            if let Some(net) = plain_v6(text.as_bytes()) {
                prop_assert_eq!(Ok(net), slow);
            } else if let Ok(net) = slow {
                let odd = text.contains('.')
                    || text.contains("/0") && !text.ends_with("/0")
                    || net.addr() != net.network()
                    || net.addr().to_ipv4_mapped().is_some();
                prop_assert!(odd, "{}", net);
            }
        }

        #[test]
        fn what_is_written_is_plain(address in sparse(), length: u8) {
            let target = target(address.into(), length);
            let IpNet::V6(net) = target.net() else { unreachable!("it is of IPv6") };
            if net.addr().to_ipv4_mapped().is_none() {
                prop_assert_eq!(plain_v6(target.to_string().as_bytes()), Some(net));
            }
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
