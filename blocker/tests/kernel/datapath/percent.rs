//! Rules with a `percent` below 100.

use anyhow::Result;

use crate::packets::program::XDP_PASS;
use crate::packets::{Bench, Program, SETTINGS, rule, udp};

/// XDP leaves rules with random sampling to TC, so that a packet is sampled once: otherwise XDP would drop
/// the packets that the first rule's sample leaves out, and TC would sample the rest again.
#[test]
fn xdp_settles_nothing_behind_a_sample() -> Result<()> {
    let rules = [
        rule("some", "10.48.22.221", "{mode: audit, percent: 50}"),
        rule("rest", "10.48.22.0/24", "{mode: drop}"),
    ];
    let packet = udp(b"hello").remote([10, 48, 22, 221]);
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&rules, &[])?;
        let mut audited = 0;
        for _ in 0..400 {
            let xdp = bench.run(Program::Xdp, &Program::Xdp.meets(&packet))?;
            assert_eq!((xdp.verdict, xdp.rule()), (XDP_PASS, None));
            let tc = bench.run(Program::Ingress, &Program::Ingress.meets(&packet))?;
            audited += u32::from(tc.rule() == Some(0));
        }
        // Ten standard deviations around a half.
        assert!((100..300).contains(&audited), "{audited} of 400");
        Ok(())
    })
}
