package vantage.settings_test

import data.vantage.settings

test_defaults_without_config if {
	settings.pause_on_severity == ["critical", "high"] with data.vantage.config as {}
	settings.alert_on_severity == ["critical", "high", "medium"] with data.vantage.config as {}
	settings.default_severity == "medium" with data.vantage.config as {}
	settings.pause_on_hidden == false with data.vantage.config as {}
	settings.alert_on_incomplete == true with data.vantage.config as {}
}

test_config_wins if {
	settings.pause_on_severity == [] with data.vantage.config as {"pause_on_severity": []}
	settings.pause_on_hidden == true with data.vantage.config as {"pause_on_hidden": true}
	settings.alert_on_incomplete == false with data.vantage.config as {"alert_on_incomplete": false}
}
