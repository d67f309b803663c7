//! Where the server listens: a unix socket in a private folder, or TCP on loopback where there are none.

#[cfg(unix)]
pub(crate) use unix::{Listener, RawStream};

#[cfg(not(unix))]
pub(crate) use tcp::{Listener, RawStream};

#[cfg(unix)]
mod unix {
    use std::fs::{DirBuilder, remove_dir, remove_file};
    use std::io;
    use std::os::unix::fs::DirBuilderExt;
    use std::path::PathBuf;

    pub(crate) type RawStream = tokio::net::UnixStream;

    /// Socket paths have room for about 108 bytes; long temporary folders are not usable.
    const MAX_PATH: usize = 100;

    /// Listens on a socket that is removed with its folder when dropped.
    pub(crate) struct Listener {
        listener: tokio::net::UnixListener,
        folder: PathBuf,
        path: PathBuf,
    }

    impl Listener {
        /// Makes a folder that only this user can enter, and listens in it.
        pub(crate) fn bind() -> io::Result<Self> {
            let asked = std::env::var_os("PLUGIN_UNIX_SOCKET_DIR").map(PathBuf::from);
            let wanted = asked.unwrap_or_else(std::env::temp_dir);
            let usable = wanted.as_os_str().len() + 40 < MAX_PATH;
            let base = if usable {
                wanted
            } else {
                PathBuf::from("/tmp")
            };
            let process = std::process::id();
            for attempt in 0..100 {
                let folder = base.join(format!("tf-provider-{process}-{attempt}"));
                match DirBuilder::new().mode(0o700).create(&folder) {
                    // An earlier process with this id may have been killed and have left its folder.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(error),
                    Ok(()) => {}
                }
                let path = folder.join("plugin");
                return match tokio::net::UnixListener::bind(&path) {
                    Ok(listener) => Ok(Self {
                        listener,
                        folder,
                        path,
                    }),
                    Err(error) => {
                        // Nothing is in it.
                        let _ = remove_dir(&folder);
                        Err(error)
                    }
                };
            }
            Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "no free name for the socket's folder",
            ))
        }

        /// Network and address as the handshake names them.
        pub(crate) fn address(&self) -> (&'static str, String) {
            ("unix", self.path.display().to_string())
        }

        /// What to remove when the process ends without dropping this.
        pub(crate) fn remains(&self) -> Remains {
            Remains {
                folder: self.folder.clone(),
                path: self.path.clone(),
            }
        }

        pub(crate) async fn accept(&self) -> io::Result<RawStream> {
            self.listener.accept().await.map(|(stream, _)| stream)
        }
    }

    /// Removes socket and folder when dropped.
    pub(crate) struct Remains {
        folder: PathBuf,
        path: PathBuf,
    }

    impl Drop for Remains {
        fn drop(&mut self) {
            // The process ends; what cannot be removed is an empty socket file in a private folder.
            let _ = remove_file(&self.path);
            let _ = remove_dir(&self.folder);
        }
    }
}

#[cfg(not(unix))]
mod tcp {
    use std::io;
    use std::net::{Ipv4Addr, SocketAddr};

    pub(crate) type RawStream = tokio::net::TcpStream;

    /// Listens on loopback.
    pub(crate) struct Listener {
        listener: tokio::net::TcpListener,
        address: SocketAddr,
    }

    fn port(name: &str, default: u16) -> u16 {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    }

    impl Listener {
        /// Takes the first free port of the range that the client names.
        pub(crate) fn bind() -> io::Result<Self> {
            let range = port("PLUGIN_MIN_PORT", 10_000)..=port("PLUGIN_MAX_PORT", 25_000);
            for port in range {
                if let Ok(listener) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    return Ok(Self {
                        listener: tokio::net::TcpListener::from_std(listener)?,
                        address,
                    });
                }
            }
            Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "no free port in the range of the client",
            ))
        }

        /// Network and address as the handshake names them.
        pub(crate) fn address(&self) -> (&'static str, String) {
            ("tcp", self.address.to_string())
        }

        /// Ports leave nothing behind.
        pub(crate) fn remains(&self) -> Remains {
            Remains
        }

        pub(crate) async fn accept(&self) -> io::Result<RawStream> {
            self.listener.accept().await.map(|(stream, _)| stream)
        }
    }

    /// Nothing.
    pub(crate) struct Remains;
}
