//! The demonstration's rows: the commands of each way to cut A off from B.

/// A way to block, the host that blocks, and blocker's promise.
pub(super) struct Row {
    /// The row's title.
    pub(super) title: &'static str,
    /// The host that blocks.
    pub(super) place: Place,
    /// Commands to run before the connections are opened.
    pub(super) before: &'static [&'static str],
    /// How it blocks.
    pub(super) block: Block,
}

/// The host that blocks.
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
    /// An outage: no end sees an error, and connections go on after the lift.
    Outage,
    /// Both ends die at once, and new connections get no answer.
    KilledOutage,
    /// No end sees an error until the lift, when connections with traffic die.
    OutageThenReset,
}

/// Makes a router track connections, as NAT, container networks and stateful firewalls do: it has
/// no other record of an idle connection. The rule only counts.
const TRACKED: &str = "iptables -w -A FORWARD -m conntrack --ctstate ESTABLISHED";

/// All rows, in the order in which they run.
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
