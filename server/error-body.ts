/** The body of every answer that is not a success, in the form its reader expects. */
import { STATUS_CODES } from "node:http";
import { ApiError, errors } from "./errors.ts";

export interface ErrorAnswer {
	status: number;
	body: object;
}

/** What a fault of the framework means to the caller; all else is internal. */
export function asApiError(error: unknown): ApiError {
	if (error instanceof ApiError) return error;
	const code =
		error instanceof Error && "code" in error ? error.code : undefined;
	switch (code) {
		case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
			return new ApiError(errors.invalidFormat, {
				detail: "The header Content-Type is malformed.",
			});
		// A path that is no text in UTF-8, or absurdly long, is no API.
		case "FST_ERR_BAD_URL":
		case "FST_ERR_MAX_PARAM_LENGTH":
			return new ApiError(errors.noSuchApi);
		default:
			return new ApiError(errors.internal, { cause: error });
	}
}

/**
 * The vendor's services answer with `error_code` and `error_msg`, its gateway adds the
 * request id, and its IAM (under `/v3/`) wraps code, message and title in `error`.
 */
export function errorAnswer(
	error: ApiError,
	url: string,
	requestId: string,
): ErrorAnswer {
	const { status, code } = error.kind;
	if (code.startsWith("APIGW.")) {
		return {
			status,
			body: {
				error_code: code,
				error_msg: error.message,
				request_id: requestId,
			},
		};
	}
	if (url.startsWith("/v3/")) {
		return {
			status,
			body: {
				error: {
					code: status,
					message: error.message,
					title: STATUS_CODES[status] ?? "Error",
				},
			},
		};
	}
	return {
		status,
		body: {
			error_code: code,
			error_msg: error.sentence,
			...(error.detail === undefined ? {} : { error_detail: error.detail }),
		},
	};
}
