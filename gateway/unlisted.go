package gateway

import (
	"maps"
	"sync"

	"github.com/fieldferry/fieldferry/gateway/alarm"
)

// unlisted are devices that publish and are not in the site file, with the YAML that
// would list them. There are as many as a bridge.Mapper tells of at most.
type unlisted struct {
	mu  sync.Mutex // guards what follows
	all map[string]string
}

func (u *unlisted) add(device, yaml string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = make(map[string]string)
	}
	u.all[device] = yaml
}

// addTo adds those of one bridge to those of others.
func (u *unlisted) addTo(all map[string]string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.Copy(all, u.all)
}

// unlistedSamples are of devices that no bridge carries, one for each: what is not in the
// site file now is not until the next start.
func unlistedSamples(bridges []*upstream) (list []alarm.Sample) {
	all := make(map[string]string)
	for _, u := range bridges {
		u.unlisted.addTo(all)
	}
	for device, yaml := range all {
		list = append(list, alarm.Sample{Name: alarm.DeviceUnlisted, Subject: device, Value: 1, Detail: yaml})
	}
	return list
}
