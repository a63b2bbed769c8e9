//! Giving up for good what a process does not need. To be called while the process has one thread:
//! later threads inherit the result.

use rustix::{
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use super::SysError;
pub use super::seccomp::Filter;

/// What the process is left with.
#[derive(Debug, Clone, Copy)]
pub struct Confined {
    /// The capabilities in force.
    pub capabilities: CapabilitySet,
    /// Whether the bounding set holds no others. Reducing it takes CAP_SETPCAP; without that,
    /// `no_new_privs` alone keeps other capabilities out of reach.
    pub bounded: bool,
    /// Whether system calls are filtered.
    pub filtered: bool,
}

/// The capabilities that a process keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Capabilities in force in every thread.
    pub effective: CapabilitySet,
    /// Capabilities that are permitted only: a thread may put them in force for itself.
    pub at_hand: CapabilitySet,
}

impl From<CapabilitySet> for Keep {
    fn from(effective: CapabilitySet) -> Self {
        Self { effective, at_hand: CapabilitySet::empty() }
    }
}

/// Gives up all capabilities except those of `keep`, forbids gaining any by executing a program and
/// dumping memory, and filters system calls where kernel and architecture can.
///
/// # Errors
/// If any of it fails. A bounding set or a filter that cannot be had is no error: [`Confined`] says
/// so.
pub fn confine(keep: impl Into<Keep>, filter: Filter) -> Result<Confined, SysError> {
    let keep = keep.into();
    let had = capabilities(None).map_err(SysError::of("capget", "the process"))?;
    clear_ambient_capability_set().map_err(SysError::of("prctl", "PR_CAP_AMBIENT_CLEAR_ALL"))?;
    let all = keep.effective | keep.at_hand;
    let bounded = bound(all)?;
    let kept = had.permitted & keep.effective;
    let permitted = had.permitted & all;
    let sets = CapabilitySets { effective: kept, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
        .map_err(SysError::of("capset", format_args!("{:#x}", kept.bits())))?;
    set_no_new_privs(true).map_err(SysError::of("prctl", "PR_SET_NO_NEW_PRIVS"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SysError::of("prctl", "PR_SET_DUMPABLE"))?;
    Ok(Confined { capabilities: kept, bounded, filtered: filter.install() })
}

/// Removes all but `keep` from the bounding set. Returns whether that was allowed.
fn bound(keep: CapabilitySet) -> Result<bool, SysError> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !keep.contains(one) => {}
            Ok(_) => continue,
            // The kernel knows no capability of this number.
            Err(Errno::INVAL) => break,
            Err(errno) => {
                return Err(SysError::new("prctl", format!("PR_CAPBSET_READ, {number}"), errno));
            }
        }
        match remove_capability_from_bounding_set(one) {
            Err(Errno::PERM) => return Ok(false),
            done => {
                done.map_err(SysError::of("prctl", format_args!("PR_CAPBSET_DROP, {number}")))?;
            }
        }
    }
    Ok(true)
}
