//! Brings loopback up in a new network namespace: one message on a netlink socket (`netlink(7)`,
//! `rtnetlink(7)`), since an ioctl on an interface would need unsafe code for the same.

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::AsRawFd;

/// Loopback is the first interface of every network namespace.
const LOOPBACK: i32 = 1;

/// Sets `IFF_UP` on loopback.
pub fn up() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
    let mut answer = [0_u8; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    status(&answer[..length])
}

/// `struct nlmsghdr` and `struct ifinfomsg`, both in the machine's byte order.
fn request() -> Vec<u8> {
    let up = libc::IFF_UP.unsigned_abs();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK).unsigned_abs();
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes()); // length
    message.extend(libc::RTM_NEWLINK.to_ne_bytes()); // type
    message.extend(u16::try_from(flags).unwrap_or(0).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes()); // sequence
    message.extend(0_u32.to_ne_bytes()); // port: the kernel
    message.extend([0, 0]); // family, padding
    message.extend(0_u16.to_ne_bytes()); // device type
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(up.to_ne_bytes()); // flags
    message.extend(up.to_ne_bytes()); // which of them change
    message
}

/// The answer is a header of 16 bytes and then a negative errno, 0 for done.
fn status(answer: &[u8]) -> Result<(), Errno> {
    let code: [u8; 4] = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::EBADMSG)?;
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        negative => Err(Errno::from_raw(negative.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = |code: i32| [vec![0; 16], code.to_ne_bytes().to_vec()].concat();
        assert_eq!(status(&answer(0)), Ok(()));
        assert_eq!(status(&answer(-libc::EPERM)), Err(Errno::EPERM));
        assert_eq!(status(b"short"), Err(Errno::EBADMSG));
        assert_eq!(request().len(), 32);
    }
}
