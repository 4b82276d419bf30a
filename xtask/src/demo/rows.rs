//! The demonstration's rows: each way to cut A off from B, as one would type it.

/// A way to block, where it is done, and what it promises.
pub(super) struct Row {
    /// What is done, in words.
    pub(super) title: &'static str,
    /// Where it is done.
    pub(super) place: Place,
    /// Commands before the connections are there.
    pub(super) before: &'static [&'static str],
    /// How it is done.
    pub(super) block: Block,
}

/// Who blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A itself.
    Host,
    /// A router between A and B.
    Router,
}

/// How B is blocked. `B` stands for its address.
pub(super) enum Block {
    /// Commands to block, and to lift.
    Commands {
        start: &'static [&'static str],
        lift: &'static [&'static str],
    },
    /// `blockctl add B` with these options, and `blockctl del B`.
    Blocker {
        options: &'static [&'static str],
        promise: Promise,
    },
}

/// What blocker promises of established connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Promise {
    /// Both ends die at once, and new connections are refused at once.
    Reset,
    /// No end sees anything, then all goes on: an outage.
    Outage,
    /// Both ends die at once, and new connections get no answer.
    KilledOutage,
    /// No end sees anything until the lift, where those that were at work die.
    OutageThenReset,
}

/// What makes a router track connections, as NAT, container networks and stateful firewalls do:
/// nothing else on it knows of a connection that is idle. The rule only counts.
const TRACKED: &str = "iptables -w -A FORWARD -m conntrack --ctstate ESTABLISHED";

/// All of them, in the order in which they are played.
pub(super) const ROWS: &[Row] = &[
    Row {
        title: "iptables REJECT (ICMP), INPUT and OUTPUT",
        place: Place::Host,
        before: &[],
        block: Block::Commands {
            start: &[
                "iptables -w -A INPUT -s B -j REJECT",
                "iptables -w -A OUTPUT -d B -j REJECT",
            ],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "iptables REJECT with tcp-reset, INPUT and OUTPUT",
        place: Place::Host,
        before: &[],
        block: Block::Commands {
            start: &[
                "iptables -w -A INPUT -s B -p tcp -j REJECT --reject-with tcp-reset",
                "iptables -w -A OUTPUT -d B -p tcp -j REJECT --reject-with tcp-reset",
            ],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "iptables REJECT with tcp-reset, INPUT only",
        place: Place::Host,
        before: &[],
        block: Block::Commands {
            start: &["iptables -w -A INPUT -s B -p tcp -j REJECT --reject-with tcp-reset"],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "iptables REJECT with tcp-reset, OUTPUT only",
        place: Place::Host,
        before: &[],
        block: Block::Commands {
            start: &["iptables -w -A OUTPUT -d B -p tcp -j REJECT --reject-with tcp-reset"],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "iptables DROP, INPUT and OUTPUT, then ss --kill",
        place: Place::Host,
        before: &[],
        block: Block::Commands {
            start: &[
                "iptables -w -A INPUT -s B -j DROP",
                "iptables -w -A OUTPUT -d B -j DROP",
                "ss --kill --no-header --tcp dst B",
            ],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "conntrack -D, where connections are tracked",
        place: Place::Host,
        before: &["iptables -w -A INPUT -m conntrack --ctstate ESTABLISHED"],
        block: Block::Commands {
            start: &["conntrack -D -s B"],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "on a router that tracks: iptables REJECT with tcp-reset, FORWARD both ways",
        place: Place::Router,
        before: &[TRACKED],
        block: Block::Commands {
            start: &[
                "iptables -w -A FORWARD -s B -p tcp -j REJECT --reject-with tcp-reset",
                "iptables -w -A FORWARD -d B -p tcp -j REJECT --reject-with tcp-reset",
            ],
            lift: &["iptables -w -F"],
        },
    },
    Row {
        title: "blockctl add B --mode reset",
        place: Place::Host,
        before: &[],
        block: Block::Blocker {
            options: &["--mode", "reset"],
            promise: Promise::Reset,
        },
    },
    Row {
        title: "on a router that tracks: blockctl add B --mode reset",
        place: Place::Router,
        before: &[TRACKED],
        block: Block::Blocker {
            options: &["--mode", "reset"],
            promise: Promise::Reset,
        },
    },
    Row {
        title: "blockctl add B --mode drop",
        place: Place::Host,
        before: &[],
        block: Block::Blocker {
            options: &["--mode", "drop"],
            promise: Promise::Outage,
        },
    },
    Row {
        title: "blockctl add B --mode drop --established kill",
        place: Place::Host,
        before: &[],
        block: Block::Blocker {
            options: &["--mode", "drop", "--established", "kill"],
            promise: Promise::KilledOutage,
        },
    },
    Row {
        title: "blockctl add B --mode drop --on-lift reset",
        place: Place::Host,
        before: &[],
        block: Block::Blocker {
            options: &["--mode", "drop", "--on-lift", "reset"],
            promise: Promise::OutageThenReset,
        },
    },
];
