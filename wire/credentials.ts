/** What a server writes at its first start: where it is reached, and how to sign in. */

/** `credentials.json` in the data directory, in this order of keys. */
export interface CredentialsFile {
	/** Of the management API. */
	endpoint: string;
	/** Of downloads and of MQTT over WebSocket. */
	device_endpoint: string;
	/** Empty while plain MQTT is off. */
	mqtt_endpoint: string;
	mqtts_endpoint: string;
	/** Empty with a certificate that the operator set. */
	ca_file: string;
	domain_name: string;
	user_name: string;
	password: string;
	access_key: string;
	secret_key: string;
	project_id: string;
	project_name: string;
	app_id: string;
}
