//! The three requests to the kernel for which there is no safe function.

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::File;
use std::io;

/// Moves the calling thread into a network of its own, with nothing in it. Children that it starts
/// from now on are there too.
pub(super) fn new_network() -> io::Result<()> {
    #[allow(unsafe_code, reason = "the flags of this call can take file descriptors away from other threads")]
    // SAFETY: only `FILES` would separate the threads' tables of descriptors, and it is not asked for.
    let moved = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    Ok(moved?)
}

/// `struct ifreq` as `TUNSETIFF` reads it: a name, flags, and the rest of a union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// From `linux/if_tun.h`: frames of Ethernet, without a header of the driver's own.
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);

/// Makes an Ethernet interface `name` in the calling thread's network. Each read of the file is one
/// frame that was sent through it, each write one that arrives. It goes when the file is closed.
pub(super) fn open_tap(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    // The last byte stays zero.
    let places = request.name[..15].iter_mut();
    places.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    #[allow(unsafe_code, reason = "an ioctl of the TUN driver")]
    // SAFETY: `TUNSETIFF` reads and writes one `struct ifreq`, of 40 bytes, which the request is a copy of.
    let made = unsafe { ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) };
    made?;
    rustix::io::ioctl_fionbio(&file, true)?;
    Ok(file)
}

/// From ext4's header: `_IOR('X', 125, __u32)`, and the flag that nothing more reaches the journal.
const EXT4_IOC_SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
const NOLOGFLUSH: u32 = 2;

/// Cuts the power of the ext4 file system that `root` is the root directory of: what was not synced
/// is gone, and each later write fails.
pub(super) fn cut_power(root: &File) -> io::Result<()> {
    #[allow(unsafe_code, reason = "an ioctl of ext4")]
    // SAFETY: `EXT4_IOC_SHUTDOWN` reads one 32-bit number, whatever its direction bits say.
    let cut = unsafe { ioctl(root, Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NOLOGFLUSH)) };
    Ok(cut?)
}
