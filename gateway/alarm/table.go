package alarm

import "time"

// The names of the alarms, as they stand in the site file and in topics.
const (
	BufferFill      = "buffer-fill"
	BufferAge       = "buffer-age"
	BufferRejecting = "buffer-rejecting"
	DiskFree        = "disk-free"
	Quarantine      = "quarantine"
	Ledger          = "ledger"
	Fsync           = "fsync"
	Clock           = "clock"
	SessionDrops    = "session-drops"
	BridgeDown      = "bridge-down"
	BridgeTwin      = "bridge-twin"
	BridgeParked    = "bridge-parked"
	DeviceUnlisted  = "device-unlisted"

	CertificateFiles  = "certificate-files"
	CertificateExpiry = "certificate-expiry"
)

// Rule is a row of the table: when an alarm is raised, and what it says.
type Rule struct {
	Name     string
	Unit     Unit
	Warning  float64 // value from which it is a warning; 0 is no such level
	Critical float64
	Below    bool          // raised at and below the thresholds instead of at and above
	For      time.Duration // how long a value must be beyond a threshold before that counts
	Clear    float64       // a level ends at this share of its threshold; 0 is 0.9
	// Text says what is wrong and what to do about it. {value}, {threshold},
	// {subject} and {detail} are filled in.
	Text string
}

// Table is the one table of alarms. What is not a share of something is in
// seconds or a plain number.
func Table() []Rule {
	return []Rule{
		{
			Name: SessionDrops, Unit: Count, Warning: 1,
			Text: "the local broker has dropped {value} messages for clients that take them too slowly or stay away too long, most for {detail}: " +
				"see to that client, or raise broker.limits.queued_messages and queued_bytes; the ledger counts them as oldest",
		},
		{
			Name: BridgeDown, Unit: Seconds, Warning: 60, Critical: 15 * 60,
			Text: "bridge {subject} has had no connection for {value} ({detail}): check the network, the upstream and what the bridge needs to log in; meanwhile the buffer keeps what is for it",
		},
		{
			Name: BridgeTwin, Unit: Count, Critical: 2,
			Text: "another client took the session of bridge {subject} {value} times in a minute: it uses the same client_id, so give each gateway its own",
		},
		{
			Name: BridgeParked, Unit: Count, Warning: 1,
			Text: "the upstream of bridge {subject} has just refused {value} messages for good: see the log for why and " +
				"`fieldferry buffer export --parked` for which; check the access rules of the upstream, and the topic in the site file",
		},
		{
			Name: DeviceUnlisted, Unit: Count, Warning: 1,
			Text: "device {subject} publishes and is not in the site file, so nothing of it goes upstream: add it below adapters, for example as\n{detail}\nand start the gateway again; or keep it from publishing below devices/",
		},
		{
			Name: CertificateFiles, Unit: Count, Critical: 1, For: 10 * time.Second, // cert and key are seldom replaced at one stroke
			Text: "the certificates of {subject} have changed and are not used, those from before are: {detail}",
		},
		{
			Name: CertificateExpiry, Unit: Seconds, Below: true, Warning: 30 * 24 * 3600, Critical: 7 * 24 * 3600,
			Text: "the certificate of {subject} expires: {detail}; have it renewed and put it in the place of the old one, it is read again by itself",
		},
		{
			Name: BufferFill, Unit: Ratio, Warning: 0.80, Critical: 0.95,
			Text: "the buffer is {value} full: see why the upstream does not take what is stored, or raise buffer.max_bytes; " +
				"what does not fit is dropped or refused, as buffer.when_full says",
		},
		{
			Name: BufferAge, Unit: Seconds, Warning: 3600, Critical: 24 * 3600,
			Text: "a message for the upstream has waited for {value}: see in the log why the bridge does not deliver; what gets older than buffer.max_age is dropped",
		},
		{
			Name: BufferRejecting, Unit: Count, Critical: 1,
			Text: "the buffer refuses messages ({detail}): its limits are reached or the disk fails, see the log; " +
				"make room on the disk or raise buffer.max_bytes",
		},
		{
			Name: DiskFree, Unit: Ratio, Below: true, Warning: 0.20, Critical: 0.05,
			Text: "only {value} of the disk with gateway.data_dir is free: delete what is not needed there; below buffer.min_free the buffer drops its oldest messages for new ones, or refuses those, as buffer.when_full has it",
		},
		{
			Name: Quarantine, Unit: Count, Critical: 1,
			Text: "the buffer was damaged, {value} findings ({detail}): check the disk, as with `smartctl -a` or `dmesg`; " +
				"the ledger counts what was lost as quarantined; delete the files in the quarantine folders when you have seen them",
		},
		{
			Name: Ledger, Unit: Count, Critical: 1,
			Text: "the ledger is out by {value} ({detail}): messages may be missing, `fieldferry buffer verify` says where; please report it",
		},
		{
			Name: Fsync, Unit: Seconds, Warning: 0.1, Critical: 1,
			Text: "{detail} {value} or longer: the disk is slow, worn or busy; a longer buffer.linger makes fewer commits",
		},
		{
			Name: Clock, Unit: Count, Warning: 1, For: time.Minute,
			Text: "the machine's clock is not synchronised, so timestamps may be wrong: see `timedatectl` or `chronyc tracking`, and whether a time server can be reached",
		},
	}
}
