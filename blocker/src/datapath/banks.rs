//! The two banks: a snapshot is written to the idle bank, then a store of one word makes it live.
//!
//! A live bank is never written. Programs that began before the switch may still read the bank that
//! was live. So after each switch a thread waits for a grace period, and only after its end is that
//! bank written again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::JoinHandle;

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData};
use blocker_ebpf::{self as abi, Bank, IndexEntry, PortSet, Rule, RuleList, State, V6Node, maps};
use ipnet::{IpNet, Ipv6Net};

use super::Error;
use super::grace::Grace;
use super::load::Object;
use super::memory::Mapped;
use super::tags::Tags;
use crate::compile::{Limits, Snapshot, is_named_v4, search_v4, walk_v6};
use crate::matching::Tried;

/// The maps to which snapshots are written.
pub struct Banks {
    limits: Limits,
    state: Mapped<State>,
    index: Mapped<IndexEntry>,
    ranges: Mapped<[u16; 4]>,
    lists: Mapped<RuleList>,
    rules: Mapped<Rule>,
    port_sets: Mapped<PortSet>,
    v6_nodes: Mapped<V6Node>,
    interfaces: HashMap<MapData, abi::InterfaceKey, u8>,
    locals: LpmTrie<MapData, abi::LocalKey, u8>,
    grace: Arc<Grace>,
    settling: Option<JoinHandle<std::io::Result<()>>>,
    generation: u64,
}

impl Banks {
    /// Takes the maps from a newly loaded object, and makes bank 0 live and empty.
    ///
    /// # Errors
    /// If a map is missing or can't be mapped.
    pub fn new(object: &mut Object, limits: Limits) -> Result<Self, Error> {
        let blocks = |blocks: u32, each: usize| blocks as usize * 2 * each;
        let state = object.mapped(maps::STATE, 1)?;
        let index = object.mapped(maps::V4_INDEX, blocks(1, abi::BUCKETS))?;
        let ranges = object.mapped(
            maps::V4_RANGES,
            blocks(limits.range_blocks, abi::WORDS_PER_BLOCK / 4),
        )?;
        let v6_nodes = object.mapped(maps::V6_NODES, blocks(limits.v6_nodes(), 1))?;
        let lists = object.mapped(maps::LISTS, blocks(limits.lists, 1))?;
        let rules = object.mapped(maps::RULES, blocks(limits.rules, 1))?;
        let port_sets = object.mapped(maps::PORT_SETS, blocks(limits.port_sets, 1))?;
        let mut banks = Self {
            limits,
            state,
            index,
            ranges,
            lists,
            rules,
            port_sets,
            v6_nodes,
            interfaces: HashMap::try_from(object.map(maps::INTERFACES)?).map_err(|source| {
                Error::Map {
                    map: maps::INTERFACES,
                    source,
                }
            })?,
            locals: locals(object)?,
            grace: Arc::new(Grace::new().map_err(|source| Error::Grace { source })?),
            settling: None,
            generation: 0,
        };
        let empty = Bank {
            v6_levels: 0,
            reserved: 0,
            v6_first: [0; abi::V6_LEVELS],
            generation: 0,
            v4_named: [0; abi::V4_NAMED_WORDS],
        };
        banks.state.write(
            0,
            &[State {
                active: 0,
                watching: 0,
                banks: [empty; 2],
            }],
        );
        Ok(banks)
    }

    /// Writes a snapshot, with the tags in place of its rules' counter slots, and makes it live. The
    /// compiler has checked the snapshot's sizes against the same limits.
    ///
    /// # Errors
    /// If the kernel refuses an entry. The live bank is unchanged then.
    pub fn switch(&mut self, snapshot: &Snapshot, tags: &Tags) -> Result<(), Error> {
        self.settle()?;
        let idle = 1 - self.active();
        self.write_interfaces(idle, snapshot)?;
        self.write_locals(idle, snapshot)?;
        self.write_arrays(idle, snapshot, tags);
        self.generation += 1;
        let bank = Bank {
            v6_levels: snapshot.v6.levels,
            reserved: 0,
            v6_first: snapshot.v6.first,
            generation: self.generation,
            v4_named: snapshot.v4.named,
        };
        let state = self.state.at(0);
        // SAFETY: inside the mapping. No program reads the idle bank's description: the grace
        // period since the bank was live is over.
        unsafe {
            (&raw mut (*state).banks)
                .cast::<Bank>()
                .add(idle)
                .write_volatile(bank);
        };
        // All writes above must be visible before the write of the word below.
        fence(Ordering::Release);
        // SAFETY: inside the mapping; programs read this aligned word with one load.
        unsafe { (&raw mut (*state).active).write_volatile(u32::from(idle == 1)) };
        fence(Ordering::SeqCst);
        let grace = Arc::clone(&self.grace);
        self.settling = Some(std::thread::spawn(move || grace.wait()));
        Ok(())
    }

    /// The number of the rule list that the datapath tries on an address, looked up in the live bank
    /// as `blocker-ebpf`'s `table.rs` does. A list's number is unique among all snapshots of this
    /// process. 0 is the empty list.
    pub fn list(&self, address: IpAddr) -> u64 {
        match self.list_number(self.active(), address) {
            0 => 0,
            number => self.generation << 32 | u64::from(number),
        }
    }

    fn list_number(&self, bank: usize, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self.list_of_v4(bank, address),
            IpAddr::V6(address) => self.list_of_v6(bank, address),
        }
    }

    /// The rules that the datapath tries on an address, in the order of the trial.
    ///
    /// # Errors
    /// If a map that is not mapped into this process can't be read.
    pub fn lookup(&self, address: IpAddr) -> Result<Vec<Tried>, Error> {
        let bank = self.active();
        let number = self.list_number(bank, address);
        if number == 0 {
            return Ok(Vec::new());
        }
        let list = self
            .lists
            .read(bank * self.limits.lists as usize + number as usize);
        let numbers = list.rules.iter().take(usize::from(list.len));
        numbers
            .map(|number| {
                let place = bank * self.limits.rules as usize + usize::from(*number);
                self.tried(bank, self.rules.read(place))
            })
            .collect()
    }

    fn list_of_v4(&self, bank: usize, address: Ipv4Addr) -> u32 {
        let address = u32::from(address);
        // SAFETY: inside the mapping; the live bank's description is never written.
        let named = unsafe { (*self.state.at(0)).banks[bank].v4_named };
        if !is_named_v4(&named, address) {
            return 0;
        }
        let bucket = (address >> 16) as usize;
        let entry = self.index.read(bank * abi::BUCKETS + bucket);
        let first = bank * self.limits.range_blocks as usize * abi::WORDS_PER_BLOCK;
        let word = |place: usize| self.ranges.read((first + place) / 4)[(first + place) % 4];
        u32::from(search_v4(entry, address, word))
    }

    fn list_of_v6(&self, bank: usize, address: Ipv6Addr) -> u32 {
        // SAFETY: inside the mapping; the live bank's description is never written.
        let about = unsafe { (*self.state.at(0)).banks[bank] };
        if about.v6_levels == 0 {
            return 0;
        }
        let nodes = bank * self.limits.v6_nodes() as usize;
        let list = walk_v6(address, about.v6_levels, &about.v6_first, |node| {
            self.v6_nodes.read(nodes + node)
        });
        u32::from(list)
    }

    /// A rule with the port, interface and local address sets that it refers to.
    fn tried(&self, bank: usize, rule: Rule) -> Result<Tried, Error> {
        let ports = |number: u16| {
            let place = bank * self.limits.port_sets as usize + usize::from(number);
            (number != abi::ANY_PORTS).then(|| Box::new(self.port_sets.read(place)))
        };
        let interfaces = (rule.interfaces != abi::ANY_INTERFACES)
            .then(|| self.members(u32::from(bank == 1) << 31 | u32::from(rule.interfaces)))
            .transpose()?;
        Ok(Tried {
            rule: Rule {
                counter: abi::slot(rule.counter),
                ..rule
            },
            ports: ports(rule.ports),
            local_ports: ports(rule.local_ports),
            remote_ports: ports(rule.remote_ports),
            interfaces,
            locals: (rule.locals != abi::ANY_LOCALS)
                .then(|| self.local_prefixes(bank, rule.locals))
                .transpose()?,
        })
    }

    /// The devices of an interface set.
    fn members(&self, set: u32) -> Result<Vec<u32>, Error> {
        let mut members = Vec::new();
        for key in self.interfaces.keys() {
            let key = key.map_err(|source| Error::Map {
                map: maps::INTERFACES,
                source,
            })?;
            if key.set == set {
                members.push(key.ifindex);
            }
        }
        members.sort_unstable();
        Ok(members)
    }

    /// The prefixes of a local address set.
    fn local_prefixes(&self, bank: usize, set: u16) -> Result<Vec<IpNet>, Error> {
        let of = |v6| abi::local_set(u32::from(bank == 1), v6, set);
        let mut prefixes = Vec::new();
        for key in self.locals.keys() {
            let key = key.map_err(|source| Error::Map {
                map: maps::LOCALS,
                source,
            })?;
            let abi::LocalKey { set, address } = key.data();
            let (address, bits) = (
                Ipv6Addr::from(address),
                key.prefix_len() - abi::LOCAL_SET_BITS,
            );
            let prefix = if set == of(true) {
                Ipv6Net::new(address, bits as u8).map(IpNet::from).ok()
            } else if set == of(false) {
                let address = address.to_ipv4_mapped();
                address.and_then(|address| IpNet::new(address.into(), (bits - 96) as u8).ok())
            } else {
                None
            };
            prefixes.extend(prefix);
        }
        prefixes.sort_unstable();
        Ok(prefixes)
    }

    /// Waits until no program reads the idle bank.
    ///
    /// # Errors
    /// If the wait for a grace period fails.
    pub fn settle(&mut self) -> Result<(), Error> {
        let Some(settling) = self.settling.take() else {
            return Ok(());
        };
        let result = settling
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the waiting thread panicked")));
        // If the thread's wait failed, wait here: no bank may be written before a wait succeeds.
        result
            .or_else(|_| self.grace.wait())
            .map_err(|source| Error::Grace { source })
    }

    fn active(&self) -> usize {
        // SAFETY: inside the mapping; only this process writes it.
        unsafe { (&raw const (*self.state.at(0)).active).read_volatile() as usize & 1 }
    }

    fn write_arrays(&mut self, idle: usize, snapshot: &Snapshot, tags: &Tags) {
        let limits = self.limits;
        let base = |per_bank: u32| idle * per_bank as usize;
        self.index.write(idle * abi::BUCKETS, &snapshot.v4.index);
        let first_block = base(limits.range_blocks);
        for (number, block) in snapshot.v4.ranges.iter().enumerate() {
            let start = (first_block + number) * abi::WORDS_PER_BLOCK / 4;
            let (words, rest) = block.as_chunks::<4>();
            self.ranges.write(start, words);
            if !rest.is_empty() {
                let mut last = [0; 4];
                last[..rest.len()].copy_from_slice(rest);
                self.ranges.write(start + words.len(), &[last]);
            }
        }
        self.v6_nodes
            .write(base(limits.v6_nodes()), &snapshot.v6.nodes);
        self.lists.write(base(limits.lists), &snapshot.lists);
        let rules = snapshot.rules.iter().map(|rule| Rule {
            counter: tags.of(rule.counter),
            ..*rule
        });
        self.rules
            .write(base(limits.rules), &rules.collect::<Vec<_>>());
        self.port_sets
            .write(base(limits.port_sets), &snapshot.port_sets);
    }

    fn write_interfaces(&mut self, idle: usize, snapshot: &Snapshot) -> Result<(), Error> {
        let error = |source| Error::Map {
            map: maps::INTERFACES,
            source,
        };
        let bank = u32::from(idle == 1) << 31;
        let old: Vec<_> = self
            .interfaces
            .keys()
            .collect::<Result<_, _>>()
            .map_err(error)?;
        for key in old.into_iter().filter(|key| key.set & (1 << 31) == bank) {
            self.interfaces.remove(&key).map_err(error)?;
        }
        for (set, members) in (0_u32..).zip(&snapshot.interface_sets) {
            for ifindex in members {
                let key = abi::InterfaceKey {
                    set: bank | set,
                    ifindex: *ifindex,
                };
                self.interfaces.insert(key, 1, 0).map_err(error)?;
            }
        }
        Ok(())
    }

    fn write_locals(&mut self, idle: usize, snapshot: &Snapshot) -> Result<(), Error> {
        let error = |source| Error::Map {
            map: maps::LOCALS,
            source,
        };
        let bank = u32::from(idle == 1);
        let old: Vec<_> = self
            .locals
            .keys()
            .collect::<Result<_, _>>()
            .map_err(error)?;
        let of_bank = |key: &Key<abi::LocalKey>| u32::from(key.data().set[0] >> 7) == bank;
        for key in old.into_iter().filter(of_bank) {
            self.locals.remove(&key).map_err(error)?;
        }
        for (set, nets) in (0..).zip(&snapshot.local_sets) {
            for net in nets {
                let key = local_key(bank, set, *net);
                self.locals.insert(&key, 1, 0).map_err(error)?;
            }
        }
        Ok(())
    }
}

impl Drop for Banks {
    fn drop(&mut self) {
        if let Some(settling) = self.settling.take() {
            // The banks are not written any more, so the result of the wait is not needed.
            let _ended = settling.join();
        }
    }
}

fn locals(object: &mut Object) -> Result<LpmTrie<MapData, abi::LocalKey, u8>, Error> {
    let map = maps::LOCALS;
    LpmTrie::try_from(object.map(map)?).map_err(|source| Error::Map { map, source })
}

/// The key of a prefix in a local address set. Its length counts the bits of the set's number too.
fn local_key(bank: u32, set: u16, net: IpNet) -> Key<abi::LocalKey> {
    let (v6, address, bits) = match net {
        IpNet::V4(net) => (false, net.network().to_ipv6_mapped(), 96),
        IpNet::V6(net) => (true, net.network(), 0),
    };
    let key = abi::LocalKey {
        set: abi::local_set(bank, v6, set),
        address: address.octets(),
    };
    let length = abi::LOCAL_SET_BITS + bits + u32::from(net.prefix_len());
    Key::new(length, key)
}
